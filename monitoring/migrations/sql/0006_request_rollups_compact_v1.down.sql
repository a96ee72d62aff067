DROP FUNCTION request_rollups_compact(integer);
