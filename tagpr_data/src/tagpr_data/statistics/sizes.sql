-- How many rows, users, characters, words and counted tokens are in each split of traces and rejected?
SELECT kind, split, count(*) AS rows, count(DISTINCT user_id) AS users, count(DISTINCT example_id) AS examples,
       sum(len(text))::BIGINT AS completion_characters,
       sum(len(regexp_extract_all(text, '\S+')))::BIGINT AS completion_words,
       sum(list_sum(list_transform(messages, lambda message: len(message.content))))::BIGINT AS prompt_characters,
       count(input_tokens) AS rows_with_token_counts,
       sum(input_tokens)::BIGINT AS prompt_tokens, sum(output_tokens)::BIGINT AS completion_tokens
FROM (SELECT 'traces' AS kind, split, user_id, example_id, text, messages, input_tokens, output_tokens FROM traces
      UNION ALL
      SELECT 'rejected', split, user_id, example_id, text, messages, input_tokens, output_tokens FROM rejected)
GROUP BY kind, split
