-- One database each; the role is made by POSTGRES_USER.
CREATE DATABASE prefect;
CREATE DATABASE mlflow;
