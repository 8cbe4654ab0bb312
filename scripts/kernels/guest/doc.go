// Guest is the first process of the virtual machines that scripts/kernels boots. As process 1 it mounts
// what tests need, loads the modules that came with it, runs the steps of /plan.json one after another
// with their output on the second serial port, and switches the machine off. Called as `guest probe` it
// prints what the kernel that it runs on can do, as JSON; on any host.
package main
