// Package config reads the configuration file: strictly, and whole or not at all. It decides
// nothing about what the file does not say beyond the defaults that are safe.
package config
