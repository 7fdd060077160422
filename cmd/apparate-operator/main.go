// Command apparate-operator is the control plane: it watches registries for
// pushes and makes accelerated images of those that match a rule.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/klog/v2"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
)

// version is set by the linker in releases.
var version = "development"

func main() { os.Exit(run(os.Args[1:])) }

// run executes the command line and returns the exit code: 0, 1 for a failure,
// 2 for a command line that makes no sense.
func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRootCommand()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	text := strings.ReplaceAll(err.Error(), "\n", "; ")
	if errors.As(err, new(usageError)) {
		fmt.Fprintf(os.Stderr, "apparate-operator: %s (see '%s --help')\n", text, cmd.CommandPath())
		return 2
	}
	fmt.Fprintln(os.Stderr, "apparate-operator: "+text)
	return 1
}

// usageError is a command line that cannot be carried out as written.
type usageError struct{ error }

// setLog makes one structured log of all parts, ours and the libraries'.
func setLog(level slog.Level, format string) (logr.Logger, error) {
	o := &slog.HandlerOptions{Level: level}
	var h slog.Handler
	switch format {
	case "json":
		h = slog.NewJSONHandler(os.Stderr, o)
	case "text":
		h = slog.NewTextHandler(os.Stderr, o)
	default:
		return logr.Logger{}, usageError{fmt.Errorf("--log-format %q: use json or text", format)}
	}
	l := logr.FromSlogHandler(h)
	ctrllog.SetLogger(l)
	klog.SetLogger(l)
	return l, nil
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%s takes no arguments, got %q", cmd.Name(), args[0])}
	}
	return nil
}
