package tools

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Say writes a progress line. A reader that is gone is no reason to stop.
func Say(progress io.Writer, format string, args ...any) {
	_, _ = fmt.Fprintf(progress, format+"\n", args...)
}

// GoBuild runs go build in the directory dir with the given arguments (flags,
// then packages) and writes to out, as -o. The build is static and trimmed, with
// the same flags for everything, so that all programs share one build cache: the
// standard library is compiled once. What is being built is named in progress
// lines, a few a minute.
func GoBuild(ctx context.Context, progress io.Writer, name, dir, out string, args ...string) error {
	return goBuild(ctx, progress, name, dir, out, nil, args...)
}

// goBuild is GoBuild with more environment, which wins over that of all builds.
func goBuild(ctx context.Context, progress io.Writer, name, dir, out string, env []string, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"build", "-v", "-trimpath", "-o", out}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(buildEnv(), env...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	start := time.Now()
	Say(progress, "%s: building", name)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting go: %w", err)
	}
	messages := report(progress, name, start, stderr)
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx) // which killed it
		}
		return fmt.Errorf("building %s: %w\n%s", name, err, strings.Join(messages, "\n"))
	}
	Say(progress, "%s: built in %.0f s", name, time.Since(start).Seconds())
	return nil
}

// buildEnv is the environment of all builds.
func buildEnv() []string { return append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off") }

// report turns the output of go build -v into progress lines and returns the
// lines that are neither package names nor downloads: the errors.
func report(progress io.Writer, name string, start time.Time, stderr io.Reader) (messages []string) {
	const every, keep = 5 * time.Second, 50
	var modules, packages int
	next := start.Add(every)
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "go: downloading "):
			modules++
		case !strings.ContainsAny(line, " :\t"):
			packages++
		case len(messages) < keep:
			messages = append(messages, line)
		}
		if now := time.Now(); now.After(next) {
			next = now.Add(every)
			Say(progress, "%s: %.0f s, %d modules downloaded, %d packages compiled", name, now.Sub(start).Seconds(), modules, packages)
		}
	}
	_, _ = io.Copy(io.Discard, stderr) // past a line too long for the scanner: the compiler must not wait
	return messages
}
