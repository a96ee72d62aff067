-- An operator may open or close a breaker with one UPDATE of `state`: the time of the change is
-- stamped and the counts start anew, as far as the statement does not set them itself.
CREATE FUNCTION gateway_breaker_state_change_v1() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.last_state_change := now();
    NEW.updated_at := now();
    NEW.failure_count := CASE WHEN NEW.failure_count = OLD.failure_count THEN 0
                              ELSE NEW.failure_count END;
    NEW.success_count := CASE WHEN NEW.success_count = OLD.success_count THEN 0
                              ELSE NEW.success_count END;
    NEW.probe_until := NULL;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION gateway_breaker_state_change_v1() IS
    'Stamps a change of a circuit breaker''s state that came without its time.';

CREATE TRIGGER gateway_breaker_state_change BEFORE UPDATE OF state ON circuit_breakers
    FOR EACH ROW
    WHEN (OLD.state IS DISTINCT FROM NEW.state
          AND OLD.last_state_change = NEW.last_state_change)
    EXECUTE FUNCTION gateway_breaker_state_change_v1();
