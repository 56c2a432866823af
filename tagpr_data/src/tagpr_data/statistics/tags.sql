-- How often does each tag occur, in how many traces, and how many items does a step of it cite?
SELECT step.tag AS tag, count(*) AS steps, count(DISTINCT id) AS traces,
       sum(len(step.cites))::BIGINT AS citations, sum((len(step.cites) > 0)::INT)::BIGINT AS citing_steps
FROM (SELECT id, unnest(steps) AS step FROM traces)
GROUP BY tag
ORDER BY steps DESC, tag
