-- What decides about a call: breakers, and the operator's settings of pools and queues (the rows
-- with an empty name). Counts and the processes' gauges stay silent.
CREATE TRIGGER circuit_breakers_change_notice
    AFTER UPDATE OF state, last_state_change, timeout_ms, probe_until, failure_threshold,
        success_threshold
    ON circuit_breakers FOR EACH ROW
    WHEN (NEW.service_name = ''
          AND (OLD.state, OLD.last_state_change, OLD.timeout_ms, OLD.probe_until,
               OLD.failure_threshold, OLD.success_threshold)
              IS DISTINCT FROM
              (NEW.state, NEW.last_state_change, NEW.timeout_ms, NEW.probe_until,
               NEW.failure_threshold, NEW.success_threshold))
    EXECUTE FUNCTION registry_change_notice_v1('server_id');

CREATE TRIGGER connection_pools_change_notice
    AFTER UPDATE OF max_size, timeout_ms, idle_timeout_ms ON connection_pools FOR EACH ROW
    WHEN (NEW.pool_name = ''
          AND (OLD.max_size, OLD.timeout_ms, OLD.idle_timeout_ms)
              IS DISTINCT FROM (NEW.max_size, NEW.timeout_ms, NEW.idle_timeout_ms))
    EXECUTE FUNCTION registry_change_notice_v1('server_id');

CREATE TRIGGER request_queues_change_notice
    AFTER UPDATE OF max_size, processing_timeout_ms, priority_levels, is_accepting_requests
    ON request_queues FOR EACH ROW
    WHEN (NEW.queue_name = ''
          AND (OLD.max_size, OLD.processing_timeout_ms, OLD.priority_levels,
               OLD.is_accepting_requests)
              IS DISTINCT FROM
              (NEW.max_size, NEW.processing_timeout_ms, NEW.priority_levels,
               NEW.is_accepting_requests))
    EXECUTE FUNCTION registry_change_notice_v1('server_id');
