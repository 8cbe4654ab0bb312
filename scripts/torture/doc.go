// Command torture kills the real daemon over and over, in the middle of its work, and looks whether
// anything that it promised was broken: no acknowledged change lost, none undone, no packet of a
// banned source passed, no packet of another one lost, nothing left behind. It reaches nothing
// outside of its own network namespaces.
package main
