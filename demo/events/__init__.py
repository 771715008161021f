"""`make demo-events`: agents that know topics and not each other, at one sidecar or at three that share a bus.

world       what is started, and how to ask it things
scenes      choreography, orders that come twice, a view that is out of date
scenes_end  a loop that a supervisor ends, and the trace of it all
"""
