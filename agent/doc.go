// Package agent is the control plane: it opens the kernel's side and the state, makes them agree,
// and runs the tasks that keep it so. Its sub-packages have a duty each; here they are put together.
package agent
