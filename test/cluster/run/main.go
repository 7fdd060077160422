// Command run keeps a test cluster for people: `make cluster-up` and `make
// cluster-down`.
//
//	cluster up [--nodes N] [--relay HOST:PORT]   start it; returns once it is ready
//	cluster exec node-1|control COMMAND...       run a command on a node, or in the control plane's network
//	cluster down                                 end it and remove what it left
//
// A process of its own owns the cluster: when that ends, however it does, all of the
// cluster's processes end.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/apparate/apparate/test/cluster"
	"github.com/apparate/apparate/test/tools"
)

const (
	clusterName = "dev"
	// ready is the owner's last word to the process that started it.
	ready = "cluster: up"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() > 0 {
			os.Exit(exit.ExitCode()) // of a command on a node, which has said why
		}
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("say up, exec or down")
	}
	cache, err := tools.CacheDir()
	if err != nil {
		return err
	}
	dir := filepath.Join(cache, "clusters")
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	nodes := flags.Int("nodes", 3, "how many nodes to start")
	relay := flags.String("relay", "127.0.0.1:16443", "where the API server is to be reached on this machine")
	name := flags.String("name", clusterName, "name of the cluster: several may run")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	o := cluster.Options{Dir: dir, Name: *name, Nodes: *nodes, Relay: *relay}
	switch args[0] {
	case "up":
		return up(o)
	case "own": // what up starts
		return own(o)
	case "exec":
		return enter(o, flags.Args())
	case "down":
		return down(o)
	default:
		return fmt.Errorf("%s: say up, exec or down", args[0])
	}
}

// kubeconfig is where people find it: outputs go to out.
func kubeconfig(ctx context.Context, name string) (string, error) {
	root, err := tools.Root(ctx)
	return filepath.Join(root, "out", "cluster-"+name, "kubeconfig"), err
}

// up starts the owner and shows what it says until the cluster is ready.
func up(o cluster.Options) error {
	if pid := cluster.Owner(o.Dir, o.Name); pid != 0 {
		return fmt.Errorf("the cluster %s is up already (process %d): make cluster-down ends it", o.Name, pid)
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(o.Dir, o.Name+".log"))
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the owner has it
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }() // read to its end
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, "own", "--name", o.Name, "--nodes", strconv.Itoa(o.Nodes), "--relay", o.Relay)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, []*os.File{in}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return errors.Join(err, in.Close())
	}
	if err := in.Close(); err != nil {
		return err
	}
	// Whoever interrupts the start does not want the cluster.
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt, syscall.SIGTERM)
	go func() {
		for range interrupts {
			_ = cmd.Process.Signal(syscall.SIGTERM) // it cleans up and ends, and so do we
		}
	}()
	var said strings.Builder
	if _, err := io.Copy(io.MultiWriter(os.Stderr, &said), out); err != nil {
		return err
	}
	if !strings.HasSuffix(said.String(), ready+"\n") {
		return fmt.Errorf("the cluster did not start: %w (log: %s)", cmd.Wait(), log.Name())
	}
	return cmd.Process.Release()
}

// own runs the cluster until it is told to end.
func own(o cluster.Options) (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	starter := os.NewFile(3, "starter")
	syscall.CloseOnExec(3)
	path, err := kubeconfig(ctx, o.Name)
	if err != nil {
		return err
	}
	// The one that started it is gone after its start.
	progress := io.MultiWriter(os.Stderr, starter)
	c, err := cluster.Run(ctx, progress, o)
	if err != nil {
		tools.Say(progress, "cluster: %v", err)
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := c.WriteKubeconfig(path); err != nil {
		tools.Say(progress, "cluster: %v", err)
		return err
	}
	kubectl, err := tools.Ensure(ctx, io.Discard, tools.Kube)
	if err != nil {
		return err
	}
	tools.Say(progress, `
  export KUBECONFIG=%s PATH=%s:$PATH
  kubectl get nodes
  bin/cluster exec node-1 ctr -n k8s.io containers ls    a command on a node
  bin/cluster exec control kubectl get nodes             a command in the control plane's network
  registry: %s there (any image name on the nodes leads to it); files: %s
%s`, path, filepath.Dir(kubectl[tools.Kube]), cluster.RegistryAddress, c.Dir, ready)
	if err := starter.Close(); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// enter runs a command in a part of a cluster of another process.
func enter(o cluster.Options, args []string) error {
	if len(args) < 2 {
		return errors.New("exec: say where (control, node-1, ...) and what")
	}
	cmd, err := cluster.Enter(context.Background(), filepath.Join(o.Dir, o.Name), args[0], args[1:]...)
	if err != nil {
		return err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = nil // the terminal is the command's
	return cmd.Run()
}

// down ends the owner, which cleans up, or cleans up after one that is gone.
func down(o cluster.Options) error {
	ctx := context.Background()
	if pid := cluster.Owner(o.Dir, o.Name); pid != 0 {
		tools.Say(os.Stderr, "cluster: ending %s (process %d)", o.Name, pid)
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
		for limit := time.Now().Add(time.Minute); cluster.Owner(o.Dir, o.Name) == pid; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(limit) {
				tools.Say(os.Stderr, "cluster: it does not end: killing it")
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					return err
				}
				limit = time.Now().Add(time.Minute)
			}
		}
	}
	if err := cluster.Sweep(o.Dir, os.Stderr); err != nil {
		return err
	}
	path, err := kubeconfig(ctx, o.Name)
	if err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(filepath.Dir(path)), os.RemoveAll(filepath.Join(o.Dir, o.Name+".log"))); err != nil {
		return err
	}
	tools.Say(os.Stderr, "cluster: %s is down, nothing is left", o.Name)
	return nil
}
