// Package maps is the typed access to the kernel's maps: bans, allows, limits, sources, counters,
// events and switches. It knows the tables' layout and the order of writes that is safe while
// packets are read against them. It decides no policy, loads no program, and attaches nothing.
package maps
