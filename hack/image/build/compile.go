package build

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

// compile builds the programs into bin, static and without what differs between
// machines: paths, the state of the repository, flags of the environment.
func compile(ctx context.Context, progress io.Writer, o Options, bin string) error {
	args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid= -X main.version=" + o.Version, "-o", bin + "/"}
	for _, p := range Programs {
		args = append(args, "./cmd/"+p)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = o.Root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=", "GOEXPERIMENT=", "GOOS=linux", "GOARCH="+o.Arch, "GOAMD64=v1", "GOARM64=v8.0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	start := time.Now()
	say := func(format string, a ...any) {
		// A reader that is gone is no reason to stop.
		_, _ = fmt.Fprintf(progress, "image: "+format+"\n", a...)
	}
	say("compiling for linux/%s", o.Arch)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting go: %w", err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for {
		select {
		case err := <-done:
			if ctx.Err() != nil {
				return context.Cause(ctx) // which killed it
			}
			if err != nil {
				return fmt.Errorf("go build: %w\n%s", err, &stderr)
			}
			say("compiled in %.0f s", time.Since(start).Seconds())
			return nil
		case <-time.After(10 * time.Second):
			say("still compiling, %.0f s", time.Since(start).Seconds())
		}
	}
}
