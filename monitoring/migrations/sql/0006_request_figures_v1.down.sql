DROP FUNCTION request_figures(uuid, timestamptz, timestamptz);
