-- Run once by the postgres image, as the superuser, in the database it has just made.
-- Two roles: the owner migrates, the app serves with no more than `authsvc migrate --grant-to`
-- gives it. The passwords are read here, so that they are in no argument and no environment.
\set owner_password `cat /run/secrets/postgresql_owner_password`
\set app_password `cat /run/secrets/postgresql_app_password`
CREATE ROLE authsvc_owner LOGIN PASSWORD :'owner_password';
CREATE ROLE authsvc_app LOGIN PASSWORD :'app_password';
ALTER DATABASE authsvc OWNER TO authsvc_owner;
REVOKE ALL ON DATABASE authsvc FROM PUBLIC;
