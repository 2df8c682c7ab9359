"""What `qexp bench` measures: ratios and times of training, memory and start-up, each beside its limit."""
