// Command ensure builds the external programs that the tests run, where the cache
// lacks them: once, before the tests, whose time is bounded. With names of programs
// it builds those alone and prints their paths.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/apparate/apparate/test/tools"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	names := os.Args[1:]
	if len(names) == 0 {
		names = append(tools.All(), tools.Cluster()...)
	}
	paths, err := tools.Ensure(ctx, os.Stderr, names...)
	if err != nil {
		fmt.Fprintln(os.Stderr, "ensure:", err)
		os.Exit(1)
	}
	for _, n := range os.Args[1:] {
		fmt.Println(paths[n])
	}
}
