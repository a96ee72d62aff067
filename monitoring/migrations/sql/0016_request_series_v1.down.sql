DROP FUNCTION request_series(uuid, timestamptz, timestamptz, interval);
