package cri

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// runtime answers what the client has to make something of; all else is in the tests
// with real ones, test/matrix.
type runtime struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer
	pulls int
}

func (*runtime) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{RuntimeName: "test"}, nil
}

func (*runtime) ExecSync(_ context.Context, r *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	if r.GetCmd()[0] == "false" {
		return &runtimeapi.ExecSyncResponse{ExitCode: 3, Stderr: []byte("no\n")}, nil
	}
	return &runtimeapi.ExecSyncResponse{Stdout: []byte("yes\n")}, nil
}

func (r *runtime) ImageStatus(context.Context, *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	if r.pulls == 0 {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	return &runtimeapi.ImageStatusResponse{Image: &runtimeapi.Image{Id: "id"}}, nil
}

func (r *runtime) PullImage(context.Context, *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	r.pulls++
	return &runtimeapi.PullImageResponse{ImageRef: "id"}, nil
}

// serve serves the services by the names of a version.
func serve(t *testing.T, version string, r *runtime) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	for _, desc := range []grpc.ServiceDesc{runtimeapi.RuntimeService_ServiceDesc, runtimeapi.ImageService_ServiceDesc} {
		desc.ServiceName = strings.Replace(desc.ServiceName, "."+V1+".", "."+version+".", 1)
		g.RegisterService(&desc, r)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = g.Serve(l) // until Stop
	}()
	t.Cleanup(func() { g.Stop(); <-done })
	return socket
}

func TestVersions(t *testing.T) {
	for _, version := range []string{V1, V1alpha2} {
		r := &runtime{}
		c, err := Dial(t.Context(), serve(t, version, r))
		if err != nil {
			t.Fatal(err)
		}
		if c.Version != version {
			t.Errorf("%s is spoken to as %s", version, c.Version)
		}
		for i, want := range []bool{true, false} {
			if pulled, err := c.Ensure(t.Context(), "app:1"); err != nil || pulled != want || r.pulls != 1 {
				t.Errorf("%d: pulled %t, %d times: %v", i, pulled, r.pulls, err)
			}
		}
		box := &Container{ID: "x", c: c, name: "box"}
		if out, err := box.Exec(t.Context(), "true"); err != nil || out != "yes\n" {
			t.Errorf("exec: %q, %v", out, err)
		}
		if _, err := box.Exec(t.Context(), "false"); err == nil || !strings.Contains(err.Error(), "exit status 3: no") {
			t.Errorf("a command that fails: %v", err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestAway(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := Await(ctx, filepath.Join(t.TempDir(), "s")); err == nil {
		t.Error("nobody was found")
	}
}
