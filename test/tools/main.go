package tools

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Main runs a program until it is done or interrupted, and ends the process: with status
// 130 when it was interrupted, 1 with run's error on standard error.
func Main(name string, run func(context.Context) error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	interrupted := ctx.Err() != nil
	stop()
	switch {
	case err == nil:
	case interrupted && errors.Is(err, context.Canceled):
		fmt.Fprintf(os.Stderr, "%s: interrupted: %v\n", name, err)
		os.Exit(130)
	default:
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
}

// Show runs a program and shows its output as progress; it is interrupted when ctx ends.
func Show(ctx context.Context, progress io.Writer, program string, args ...string) error {
	name := filepath.Base(program)
	Say(progress, "%s %s", name, strings.Join(args, " "))
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	text := strings.TrimSpace(string(out))
	if text != "" {
		for line := range strings.SplitSeq(text, "\n") {
			Say(progress, "    %s", line)
		}
	}
	if err != nil {
		return errors.Join(ctx.Err(), fmt.Errorf("%s %s: %w: %s", name, args[0], err, text))
	}
	return nil
}
