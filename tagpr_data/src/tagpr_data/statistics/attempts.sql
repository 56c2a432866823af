-- What did each attempt of each teacher on each task take, and how many traces of it were kept? Attempts count from 0.
SELECT task, teacher, attempt, count(*) AS attempts, sum(is_kept)::BIGINT AS kept,
       count(input_tokens + output_tokens) AS rows_with_token_counts,
       sum(input_tokens)::BIGINT AS input_tokens, sum(output_tokens)::BIGINT AS output_tokens
FROM (SELECT task, teacher, attempt, 1 AS is_kept, input_tokens, output_tokens FROM traces
      UNION ALL SELECT task, teacher, attempt, 0, input_tokens, output_tokens FROM rejected)
GROUP BY task, teacher, attempt
ORDER BY task, teacher, attempt
