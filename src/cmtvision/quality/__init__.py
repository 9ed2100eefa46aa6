"""What is wrong with a data set before anybody trains on it.

``check_data`` finds it, ``write_cleaned`` copies the rest, ``page.write_page`` shows it; ``quick.quick_lines`` is the
cheap part, which training makes by itself.
"""
