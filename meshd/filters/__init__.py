"""One rule a file. The order in which they run stands in `meshd.chain.FILTERS`."""
