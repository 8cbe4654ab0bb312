// Package loader puts Levee's program into the kernel and keeps it there: it creates or adopts the
// pinned set of maps, specialises one copy of the program per interface, attaches it by pinned
// links, upgrades it in place, and takes it down again. It decides no policy and never reads or
// writes what the tables hold, but for the panic switch and the table of interfaces; it never
// replaces a program that is not Levee's.
//
// # What is pinned
//
//	/sys/fs/bpf/levee/           Config.Root
//	    2/maps/NAME              the set of maps of schema 2
//	    2-new/maps/NAME          a set that is being filled and will take the place of 2 (see Upgrade)
//	    links/IFACE              the link that holds the program of one interface
//
// The program itself has no pin: the link holds it. A bpf filesystem takes no dots in names, so the
// link of eth0.100 is pinned as links/eth0%2e100.
//
// # The order of calls
//
// Open adopts the pinned set if it fits what this binary wants. If it does not (other sizes, another
// schema), Open makes a new, empty set, and the old one goes on shielding. Then the caller fills the
// maps, calls Upgrade, which moves every interface to this binary's program and this set's maps by a
// link update, and calls Attach for what it wants attached, and Watch to keep it so. An adopted set
// takes the same way: Upgrade finds nothing to do if the running programs are those that this
// binary would load.
//
// # Which program runs
//
// The kernel's tag of a program covers its instructions, but neither the constants in .rodata nor
// the maps it uses. So a running program counts as the same as the one this binary would load if
// its tag, its .rodata and its maps are the same. No digest is kept on the side that could
// disagree with the kernel.
//
// # Network namespaces
//
// A Set sees the interfaces of the network namespace of the thread that calls it. One Root serves
// one network namespace.
package loader
