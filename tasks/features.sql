-- The one definition of every feature, run by tasks/data/features.py in DuckDB for training, scoring and serving alike.
--
-- In:  spine   the rows to make features for: row_id, event_time and spine.columns
--      flights, weather, planes, airports, airlines   the clean tables, no further back than features.lookback
--      getvariable('lead')   how long before its event a prediction is asked
-- Out: row_id once for each row of the spine, and the features. Text is a category, everything else a number.
--
-- A row may use only what was known when its prediction is asked: known_at <= asked_at. Averages are of whole numbers,
-- so that threads cannot change the last digit; over a window that saw no flight they are NULL. Windows reach 7 days
-- back by known_at, which lies up to 1.4 days after its event: features.lookback (10d) covers both.
WITH asked AS (
    SELECT *, event_time - getvariable('lead') AS asked_at FROM spine
),

-- From the first question to the last: what no window of theirs can reach is left out early.
span AS (
    SELECT min(asked_at) AS first, max(asked_at) AS last FROM asked
),

-- Arrivals as they became known, and the questions between them, on one line of time. Each reader below takes of it,
-- and sorts, only what a question can touch: for the few rows of a request that is little.
timeline AS NOT MATERIALIZED (
    SELECT NULL AS row_id, known_at AS moment, carrier, flight, tailnum, origin, dest,
        arr_delay, dep_delay, CAST(arr_delay >= 15 AS INTEGER) AS late
    FROM flights
    WHERE known_at >= (SELECT first FROM span) - INTERVAL 7 DAY AND known_at <= (SELECT last FROM span)
    UNION ALL
    SELECT row_id, asked_at, carrier, flight, tailnum, origin, dest, NULL, NULL, NULL
    FROM asked
),

recent AS MATERIALIZED (
    SELECT * FROM timeline WHERE moment >= (SELECT first FROM span) - INTERVAL 1 DAY
),

by_origin AS (
    SELECT row_id,
        avg(late) OVER hour AS origin_late_1h,
        avg(arr_delay) OVER hour AS origin_delay_1h,
        avg(dep_delay) OVER hour AS origin_dep_delay_1h,
        count(late) OVER hour AS origin_arrivals_1h,
        avg(arr_delay) OVER hours AS origin_delay_4h
    FROM recent
    WHERE moment >= (SELECT first FROM span) - INTERVAL 4 HOUR AND origin IN (SELECT origin FROM asked)
    WINDOW
        hour AS (PARTITION BY origin ORDER BY moment RANGE BETWEEN INTERVAL 1 HOUR PRECEDING AND CURRENT ROW),
        hours AS (PARTITION BY origin ORDER BY moment RANGE BETWEEN INTERVAL 4 HOUR PRECEDING AND CURRENT ROW)
),

by_carrier AS (
    SELECT row_id, avg(arr_delay) OVER hours AS carrier_delay_4h, avg(late) OVER day AS carrier_late_1d
    FROM recent
    WHERE carrier IN (SELECT carrier FROM asked)
    WINDOW
        hours AS (PARTITION BY carrier ORDER BY moment RANGE BETWEEN INTERVAL 4 HOUR PRECEDING AND CURRENT ROW),
        day AS (PARTITION BY carrier ORDER BY moment RANGE BETWEEN INTERVAL 1 DAY PRECEDING AND CURRENT ROW)
),

by_dest AS (
    SELECT row_id, avg(arr_delay) OVER hours AS dest_delay_6h, avg(late) OVER week AS dest_late_7d
    FROM timeline
    WHERE dest IN (SELECT dest FROM asked)
    WINDOW
        hours AS (PARTITION BY dest ORDER BY moment RANGE BETWEEN INTERVAL 6 HOUR PRECEDING AND CURRENT ROW),
        week AS (PARTITION BY dest ORDER BY moment RANGE BETWEEN INTERVAL 7 DAY PRECEDING AND CURRENT ROW)
),

by_flight AS (
    SELECT row_id, avg(late) OVER week AS flight_late_7d, avg(arr_delay) OVER week AS flight_delay_7d
    FROM timeline
    WHERE flight IN (SELECT flight FROM asked)
    WINDOW
        week AS (PARTITION BY carrier, flight ORDER BY moment RANGE BETWEEN INTERVAL 7 DAY PRECEDING AND CURRENT ROW)
),

-- With where the aircraft came from: its last arrival that was known; of two in one minute, the later one.
by_tail AS (
    SELECT row_id, avg(arr_delay) OVER day AS tail_delay_1d,
        (max(CASE WHEN row_id IS NULL THEN {'at': moment, 'delay': arr_delay} END) OVER week).delay AS tail_last_delay,
        epoch(moment - max(CASE WHEN row_id IS NULL THEN moment END) OVER week) / 3600 AS tail_idle_hours
    FROM timeline
    WHERE tailnum IN (SELECT tailnum FROM asked)
    WINDOW
        day AS (PARTITION BY tailnum ORDER BY moment RANGE BETWEEN INTERVAL 1 DAY PRECEDING AND CURRENT ROW),
        week AS (PARTITION BY tailnum ORDER BY moment RANGE BETWEEN INTERVAL 7 DAY PRECEDING AND CURRENT ROW)
),

sky AS (
    SELECT asked.row_id, temp, humid, wind_speed, wind_gust, precip, pressure, visib
    FROM asked ASOF JOIN weather ON asked.origin = weather.origin AND asked_at >= weather.known_at
    WHERE asked_at - weather.known_at <= INTERVAL 1 DAY
)

SELECT asked.row_id,
    asked.origin, asked.carrier, asked.dest, asked.distance,
    asked.sched_dep_time // 100 * 60 + asked.sched_dep_time % 100 AS sched_minute,
    isodow(timezone('America/New_York', timezone('UTC', asked.event_time))) AS weekday,
    epoch(asked.sched_arrival - asked.event_time) / 60 AS sched_duration,
    year(asked.event_time) - planes.year AS plane_age, planes.seats, planes.manufacturer,
    sky.* EXCLUDE (row_id),
    by_origin.* EXCLUDE (row_id), by_carrier.* EXCLUDE (row_id), by_dest.* EXCLUDE (row_id),
    by_flight.* EXCLUDE (row_id), by_tail.* EXCLUDE (row_id)
FROM asked
JOIN by_origin ON by_origin.row_id = asked.row_id
JOIN by_carrier ON by_carrier.row_id = asked.row_id
JOIN by_dest ON by_dest.row_id = asked.row_id
JOIN by_flight ON by_flight.row_id = asked.row_id
LEFT JOIN by_tail ON by_tail.row_id = asked.row_id
LEFT JOIN sky ON sky.row_id = asked.row_id
LEFT JOIN planes ON planes.tailnum = asked.tailnum
