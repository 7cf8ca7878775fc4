-- In:  spine (row_id, event_time, spine.columns), stops (the clean table), getvariable('lead')
-- Out: row_id once for each row of the spine, and the features.
--
-- A row may use only what was known when its prediction is asked: known_at <= asked_at.
WITH asked AS (
    SELECT *, event_time - getvariable('lead') AS asked_at FROM spine
),

timeline AS NOT MATERIALIZED (
    SELECT NULL AS row_id, known_at AS moment, neighborhood, policePrecinct,
        CAST(problem = 'suspicious' AS INTEGER) AS suspicious
    FROM stops
    WHERE problem IS NOT NULL
    UNION ALL
    SELECT row_id, asked_at, neighborhood, policePrecinct, NULL FROM asked
),

recent AS (
    SELECT row_id,
        avg(suspicious) OVER day AS suspicious_1d,
        avg(suspicious) OVER precinct AS precinct_suspicious_7d,
        count(suspicious) OVER precinct AS precinct_stops_7d,
        avg(suspicious) OVER place AS place_suspicious_28d,
        count(suspicious) OVER place AS place_stops_28d
    FROM timeline
    WINDOW
        day AS (ORDER BY moment RANGE BETWEEN INTERVAL 1 DAY PRECEDING AND CURRENT ROW),
        precinct AS (PARTITION BY policePrecinct ORDER BY moment
            RANGE BETWEEN INTERVAL 7 DAY PRECEDING AND CURRENT ROW),
        place AS (PARTITION BY neighborhood ORDER BY moment
            RANGE BETWEEN INTERVAL 28 DAY PRECEDING AND CURRENT ROW)
)

SELECT asked.row_id, asked.lat, asked.long, asked.policePrecinct, asked.neighborhood,
    hour(local) * 60 + minute(local) AS minute,
    isodow(local) AS weekday,
    recent.* EXCLUDE (row_id)
FROM (SELECT *, timezone('America/Chicago', timezone('UTC', event_time)) AS local FROM asked) AS asked
JOIN recent ON recent.row_id = asked.row_id
