// Command preflight says whether this host can run Levee's privileged tests and its demo, and what
// is missing where it cannot. It changes nothing.
package main
