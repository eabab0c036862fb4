"""The journal of online writes: what went online, and when."""
