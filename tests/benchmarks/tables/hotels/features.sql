-- In:  spine (row_id, event_time, spine.columns), stays (the clean table), getvariable('lead')
-- Out: row_id once for each row of the spine, and the features.
--
-- A row may use only what was known when its prediction is asked: known_at <= asked_at. Averages are of whole cents, so
-- that threads cannot change the last digit.
WITH asked AS (
    SELECT *, event_time - getvariable('lead') AS asked_at FROM spine
),

timeline AS NOT MATERIALIZED (
    SELECT NULL AS row_id, known_at AS moment, reserved_room_type, market_segment,
        CAST(round(100 * avg_price_per_room) AS INTEGER) AS cents
    FROM stays
    WHERE avg_price_per_room IS NOT NULL
    UNION ALL
    SELECT row_id, asked_at, reserved_room_type, market_segment, NULL FROM asked
),

recent AS (
    SELECT row_id,
        avg(cents) OVER week / 100 AS price_7d,
        avg(cents) OVER month / 100 AS price_28d,
        avg(cents) OVER room / 100 AS room_price_28d,
        avg(cents) OVER segment / 100 AS segment_price_28d
    FROM timeline
    WINDOW
        week AS (ORDER BY moment RANGE BETWEEN INTERVAL 7 DAY PRECEDING AND CURRENT ROW),
        month AS (ORDER BY moment RANGE BETWEEN INTERVAL 28 DAY PRECEDING AND CURRENT ROW),
        room AS (PARTITION BY reserved_room_type ORDER BY moment
            RANGE BETWEEN INTERVAL 28 DAY PRECEDING AND CURRENT ROW),
        segment AS (PARTITION BY market_segment ORDER BY moment
            RANGE BETWEEN INTERVAL 28 DAY PRECEDING AND CURRENT ROW)
)

SELECT asked.row_id,
    asked.lead_time, asked.adults, asked.children, asked.babies, asked.meal, asked.market_segment,
    asked.distribution_channel, asked.customer_type, asked.reserved_room_type, asked.agent, asked.company,
    asked.is_repeated_guest, asked.days_in_waiting_list, asked.total_of_special_requests,
    asked.near_christmas, asked.near_new_years,
    asked.stays_in_weekend_nights + asked.stays_in_week_nights AS nights,
    asked.stays_in_weekend_nights AS weekend_nights,
    isodow(asked.event_time) AS weekday,
    recent.* EXCLUDE (row_id)
FROM asked
JOIN recent ON recent.row_id = asked.row_id
