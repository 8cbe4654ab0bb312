package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	usage := errors.New("usage: release sbom -binary FILE -version V | release provenance -version V -commit C FILE…")
	if len(args) == 0 {
		return usage
	}
	built, err := buildTime()
	if err != nil {
		return err
	}
	flags := flag.NewFlagSet("release "+args[0], flag.ContinueOnError)
	version := flags.String("version", "", "of the release")
	binary := flags.String("binary", "", "the binary")
	commit := flags.String("commit", "", "that was built")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	var document any
	switch args[0] {
	case "sbom":
		document, err = sbom(*binary, *version, built)
	case "provenance":
		document, err = provenance(*version, *commit, built, flags.Args())
	default:
		return usage
	}
	if err != nil {
		return err
	}
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(document)
}

// buildTime is the time that everything carries that carries one: that of the commit.
func buildTime() (time.Time, error) {
	epoch, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	return time.Unix(epoch, 0).UTC(), nil
}
