"""The pages, one file each: what is asked for, who answers, and how the answer looks."""
