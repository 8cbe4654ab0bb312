package main

import (
	"context"
	"os"
)

func main() {
	os.Exit(execute(context.Background(), system(), os.Args[1:]))
}
