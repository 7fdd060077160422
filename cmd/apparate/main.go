// Command apparate converts images, checks them, says which would be converted,
// mounts them, and serves them to containerd: one binary for people and nodes.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the linker in releases.
var version = "development"

func main() {
	os.Exit(run(os.Args[1:]))
}

// run executes the command line and returns the exit code: 0, 1 for a
// failure, 2 for a command line that makes no sense, 130 after an interrupt.
func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRootCommand()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	switch {
	case err == nil:
		return 0
	case errors.As(err, new(reported)):
		return 1
	case errors.As(err, new(usageError)):
		complain("%v (see '%s --help')", err, cmd.CommandPath())
		return 2
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		complain("interrupted")
		return 130
	}
	complain("%v", err)
	return 1
}

// complain writes what went wrong to standard error, on one line: errors that
// were joined have several.
func complain(format string, args ...any) {
	text := strings.ReplaceAll(strings.TrimSpace(fmt.Sprintf(format, args...)), "\n", "; ")
	fmt.Fprintln(os.Stderr, "apparate: "+text)
}

// usageError is a command line that cannot be carried out as written.
type usageError struct{ error }

// reported is an error that the user has been told of.
type reported struct{ error }

func newRootCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:           "apparate",
		Short:         "Container images that start before they are downloaded",
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	cmd.AddCommand(newConvertCommand(), newCheckCommand(), newVerifyCommand(), newMountCommand(), newSnapshotterCommand(), newNodeCommand(), newStatusCommand(), newProfileCommand())
	return cmd
}

// exactArgs is cobra.ExactArgs with an error that counts as wrong usage.
func exactArgs(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return usageError{fmt.Errorf("%s takes %s, got %d", cmd.Name(), what, len(args))}
		}
		return nil
	}
}
