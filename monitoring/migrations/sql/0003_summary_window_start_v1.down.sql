DROP FUNCTION summary_window_start(integer);
