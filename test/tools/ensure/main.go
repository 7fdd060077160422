// Command ensure builds the external programs that the tests run, where the cache
// lacks them: once, before the tests, whose time is bounded.
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
	if _, err := tools.Ensure(ctx, os.Stderr, append(tools.All(), tools.Cluster()...)...); err != nil {
		fmt.Fprintln(os.Stderr, "ensure:", err)
		os.Exit(1)
	}
}
