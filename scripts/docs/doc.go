// Package docs holds no code but the tests that keep README.md and docs/ true: the commands that
// they show are run, and the files that they link to exist.
package docs
