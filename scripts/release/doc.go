// Command release writes what accompanies a release: the list of what a binary is made of (CycloneDX),
// and how its files were built (in-toto, SLSA). It reads the binary and the tree and builds nothing.
package main
