-- The one definition of every feature, run by tasks/features.py in DuckDB for training, scoring and serving alike.
--
-- In:  spine   the rows to make features for: row_id, event_time and spine.columns
--      flights, weather, planes, airports, airlines   the clean tables, no further back than features.lookback
--      getvariable('lead')   how long before its event a prediction is asked
-- Out: row_id once for each row of the spine, and the features. Text is a category, everything else a number.
--
-- A row may use only what was known when its prediction is asked: known_at <= asked_at. Sums are of whole numbers, so
-- that threads cannot change the last digit; a window that saw no flight is NULL. Windows reach 7 days back by
-- known_at, which lies up to 1.4 days after its event: features.lookback (10d) covers both.
WITH asked AS (
    SELECT *, event_time - getvariable('lead') AS asked_at FROM spine
),

-- Arrivals as they became known, and the questions between them, on one line of time.
timeline AS (
    SELECT NULL AS row_id, known_at AS moment, carrier, flight, tailnum, origin, dest,
        arr_delay, dep_delay, CAST(arr_delay >= 15 AS INTEGER) AS late
    FROM flights
    WHERE known_at IS NOT NULL
    UNION ALL
    SELECT row_id, asked_at, carrier, flight, tailnum, origin, dest, NULL, NULL, NULL
    FROM asked
),

recent AS (
    SELECT row_id,
        sum(late) OVER origin_1h / count(late) OVER origin_1h AS origin_late_1h,
        sum(arr_delay) OVER origin_1h / count(late) OVER origin_1h AS origin_delay_1h,
        sum(dep_delay) OVER origin_1h / count(late) OVER origin_1h AS origin_dep_delay_1h,
        count(late) OVER origin_1h AS origin_arrivals_1h,
        sum(arr_delay) OVER origin_4h / count(late) OVER origin_4h AS origin_delay_4h,
        sum(arr_delay) OVER carrier_4h / count(late) OVER carrier_4h AS carrier_delay_4h,
        sum(late) OVER carrier_1d / count(late) OVER carrier_1d AS carrier_late_1d,
        sum(arr_delay) OVER dest_6h / count(late) OVER dest_6h AS dest_delay_6h,
        sum(late) OVER dest_7d / count(late) OVER dest_7d AS dest_late_7d,
        sum(late) OVER flight_7d / count(late) OVER flight_7d AS flight_late_7d,
        sum(arr_delay) OVER flight_7d / count(late) OVER flight_7d AS flight_delay_7d,
        sum(arr_delay) OVER tail_1d / count(late) OVER tail_1d AS tail_delay_1d
    FROM timeline
    WINDOW
        origin_1h AS (PARTITION BY origin ORDER BY moment RANGE BETWEEN INTERVAL 1 HOUR PRECEDING AND CURRENT ROW),
        origin_4h AS (PARTITION BY origin ORDER BY moment RANGE BETWEEN INTERVAL 4 HOUR PRECEDING AND CURRENT ROW),
        carrier_4h AS (PARTITION BY carrier ORDER BY moment RANGE BETWEEN INTERVAL 4 HOUR PRECEDING AND CURRENT ROW),
        carrier_1d AS (PARTITION BY carrier ORDER BY moment RANGE BETWEEN INTERVAL 1 DAY PRECEDING AND CURRENT ROW),
        dest_6h AS (PARTITION BY dest ORDER BY moment RANGE BETWEEN INTERVAL 6 HOUR PRECEDING AND CURRENT ROW),
        dest_7d AS (PARTITION BY dest ORDER BY moment RANGE BETWEEN INTERVAL 7 DAY PRECEDING AND CURRENT ROW),
        flight_7d AS (PARTITION BY carrier, flight ORDER BY moment RANGE BETWEEN INTERVAL 7 DAY PRECEDING AND CURRENT ROW),
        tail_1d AS (PARTITION BY tailnum ORDER BY moment RANGE BETWEEN INTERVAL 1 DAY PRECEDING AND CURRENT ROW)
),

-- Where the aircraft came from: its last arrival that was known. Two in one minute: the later one counts.
last_arrivals AS (
    SELECT tailnum, known_at, max(arr_delay) AS delay FROM flights
    WHERE known_at IS NOT NULL AND tailnum IS NOT NULL
    GROUP BY tailnum, known_at
),

aircraft AS (
    SELECT asked.row_id,
        CASE WHEN asked_at - known_at <= INTERVAL 7 DAY THEN delay END AS tail_last_delay,
        CASE WHEN asked_at - known_at <= INTERVAL 7 DAY THEN epoch(asked_at - known_at) / 3600 END AS tail_idle_hours
    FROM asked ASOF JOIN last_arrivals ON asked.tailnum = last_arrivals.tailnum AND asked_at >= known_at
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
    recent.* EXCLUDE (row_id),
    aircraft.* EXCLUDE (row_id)
FROM asked
JOIN recent ON recent.row_id = asked.row_id
LEFT JOIN aircraft ON aircraft.row_id = asked.row_id
LEFT JOIN sky ON sky.row_id = asked.row_id
LEFT JOIN planes ON planes.tailnum = asked.tailnum
