"""What a sweep taught: records to tables, tables to statistics, statistics to a page with pictures."""
