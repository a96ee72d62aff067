DROP FUNCTION request_rollups_rebuild(date, date);
