-- Which rows of `raw` are usable events, and why are the others not? Makes `event` and `bad_row` (reason, rows, row, value).
-- $needed names the column the task cannot do without, or is empty.
CREATE TABLE judged AS
SELECT
    row,
    trim("user") AS who,
    parse_time(trim(time)) AS moment,
    coalesce(nullif(trim(id), ''), 'r' || lpad(row::VARCHAR, 9, '0')) AS event_id,
    nullif(trim(title), '') AS title,
    trim(text) AS text,
    CASE
        WHEN $needed = 'score' AND try_cast(score AS DOUBLE) = floor(try_cast(score AS DOUBLE))
            AND abs(try_cast(score AS DOUBLE)) < 1e15
            THEN try_cast(score AS DOUBLE)::BIGINT::VARCHAR
        WHEN $needed = 'score' THEN try_cast(score AS DOUBLE)::VARCHAR
        ELSE coalesce(nullif(trim(label), ''), nullif(trim(score), ''))
    END AS label,
    nullif(trim(plain), '') AS plain,
    CASE
        WHEN is_broken THEN 'not a row: no JSON object'
        WHEN coalesce(trim("user"), '') = '' THEN 'user missing'
        WHEN coalesce(trim(time), '') = '' THEN 'time missing'
        WHEN parse_time(trim(time)) IS NULL THEN 'time unreadable'
        WHEN abs(parse_time(trim(time))) > 6e10 THEN 'time out of range'
        WHEN coalesce(trim(text), '') = '' THEN 'text missing'
        WHEN $needed = 'label' AND coalesce(trim(label), '') = '' THEN 'label missing'
        WHEN $needed = 'title' AND coalesce(trim(title), '') = '' THEN 'title missing'
        WHEN $needed = 'plain' AND coalesce(trim(plain), '') = '' THEN 'plain missing'
        WHEN $needed = 'score' AND coalesce(trim(score), '') = '' THEN 'score missing'
        WHEN $needed = 'score' AND NOT coalesce(isfinite(try_cast(score AS DOUBLE)), false) THEN 'score not a number'
    END AS reason,
    CASE
        WHEN coalesce(trim(time), '') <> '' AND parse_time(trim(time)) IS NULL THEN time
        WHEN $needed = 'score' AND coalesce(trim("user"), '') <> '' AND coalesce(trim(text), '') <> '' THEN score
    END AS value
FROM raw;

DROP TABLE raw;

-- The same id again for the same user: the first row counts.
UPDATE judged SET reason = 'id repeated', value = event_id
WHERE reason IS NULL AND row IN (
    SELECT row FROM judged WHERE reason IS NULL
    QUALIFY row_number() OVER (PARTITION BY who, event_id ORDER BY row) > 1
);

CREATE TABLE bad_row AS
SELECT reason, count(*) AS rows, min(row) AS row, arg_min(value, row) AS value
FROM judged WHERE reason IS NOT NULL GROUP BY reason;

CREATE TABLE event AS
SELECT row, who, moment, event_id, title, text, label, plain FROM judged WHERE reason IS NULL;

DROP TABLE judged;
