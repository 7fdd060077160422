// Package cri drives a containerd as kubelet does, by the Container Runtime Interface:
// version v1, or v1alpha2 where the other side is as old as containerd 1.4. The two
// have the same messages; their services have different names.
//
// Pods are in the network of their node, so no network plugin is needed.
package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The versions of the interface.
const (
	V1       = "v1"
	V1alpha2 = "v1alpha2"
)

// Client is a connection to a containerd.
type Client struct {
	// Version is that of the interface that is spoken.
	Version string
	// Runtime and Images are the services, for calls that have no method here.
	Runtime runtimeapi.RuntimeServiceClient
	Images  runtimeapi.ImageServiceClient

	conn *grpc.ClientConn
	pods atomic.Int64
}

// Dial connects to the containerd that listens on socket and finds out which version
// it speaks. The caller closes it.
func Dial(ctx context.Context, socket string) (*Client, error) {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	for _, version := range []string{V1, V1alpha2} {
		cc := named{conn, version}
		c := &Client{Version: version, Runtime: runtimeapi.NewRuntimeServiceClient(cc), Images: runtimeapi.NewImageServiceClient(cc), conn: conn}
		if _, err = c.About(ctx); err == nil {
			return c, nil
		}
		if status.Code(err) != codes.Unimplemented {
			break
		}
	}
	return nil, errors.Join(fmt.Errorf("CRI at %s: %w", socket, err), conn.Close())
}

// Await is Dial, again and again until ctx ends: for a containerd that is starting.
func Await(ctx context.Context, socket string) (*Client, error) {
	for {
		c, err := Dial(ctx, socket)
		if err == nil {
			return c, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Close ends the connection. Pods stay.
func (c *Client) Close() error { return c.conn.Close() }

// About is what the runtime says of itself.
func (c *Client) About(ctx context.Context) (*runtimeapi.VersionResponse, error) {
	return c.Runtime.Version(ctx, &runtimeapi.VersionRequest{})
}

// named is a connection that calls services by the names of a version.
type named struct {
	grpc.ClientConnInterface
	version string
}

func (n named) method(m string) string {
	return strings.Replace(m, "/runtime."+V1+".", "/runtime."+n.version+".", 1)
}

// Invoke implements grpc.ClientConnInterface.
func (n named) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	return n.ClientConnInterface.Invoke(ctx, n.method(method), args, reply, opts...)
}

// NewStream implements grpc.ClientConnInterface.
func (n named) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return n.ClientConnInterface.NewStream(ctx, desc, n.method(method), opts...)
}

func spec(image string) *runtimeapi.ImageSpec { return &runtimeapi.ImageSpec{Image: image} }

// Pull pulls an image and returns its id.
func (c *Client) Pull(ctx context.Context, image string) (string, error) {
	r, err := c.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: spec(image)})
	if err != nil {
		return "", fmt.Errorf("pulling %s: %w", image, err)
	}
	return r.GetImageRef(), nil
}

// Image returns what the runtime knows of an image, nil if it does not have it: then
// kubelet pulls it.
func (c *Client) Image(ctx context.Context, image string) (*runtimeapi.Image, error) {
	r, err := c.Images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: spec(image)})
	return r.GetImage(), err
}

// Ensure pulls an image unless it is there, as kubelet does before a container. pulled
// says which.
func (c *Client) Ensure(ctx context.Context, image string) (pulled bool, err error) {
	i, err := c.Image(ctx, image)
	if err != nil || i != nil {
		return false, err
	}
	_, err = c.Pull(ctx, image)
	return true, err
}

// RemoveImage removes an image with all its names.
func (c *Client) RemoveImage(ctx context.Context, image string) error {
	_, err := c.Images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: spec(image)})
	return err
}

// ImageFs is how much of which file systems images take.
func (c *Client) ImageFs(ctx context.Context) ([]*runtimeapi.FilesystemUsage, error) {
	r, err := c.Images.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
	return r.GetImageFilesystems(), err
}

// Containers are those that the runtime knows, running or not.
func (c *Client) Containers(ctx context.Context) ([]*runtimeapi.Container, error) {
	r, err := c.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	return r.GetContainers(), err
}

// Pod is a pod.
type Pod struct {
	// ID is the runtime's. Logs is the directory of the logs of its containers, on the
	// node.
	ID, Logs string

	c      *Client
	config *runtimeapi.PodSandboxConfig
}

// RunPod starts a pod.
func (c *Client) RunPod(ctx context.Context, name string) (*Pod, error) {
	uid := fmt.Sprintf("%s-%d-%d", name, time.Now().UnixNano(), c.pods.Add(1))
	node := &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_CONTAINER}
	p := &Pod{c: c, Logs: "/var/log/pods/" + uid, config: &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Uid: uid, Namespace: "default"},
		LogDirectory: "/var/log/pods/" + uid,
		Linux:        &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: node}},
	}}
	r, err := c.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: p.config})
	if err != nil {
		return nil, fmt.Errorf("pod %s: %w", name, err)
	}
	p.ID = r.GetPodSandboxId()
	return p, nil
}

// Remove ends the pod and its containers, and removes them.
func (p *Pod) Remove(ctx context.Context) error {
	if _, err := p.c.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		return fmt.Errorf("stopping pod %s: %w", p.config.GetMetadata().GetName(), err)
	}
	_, err := p.c.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.ID})
	return err
}

// Container is a container of a pod.
type Container struct {
	// ID is the runtime's. Log is its log on the node.
	ID, Log string

	c    *Client
	name string
}

// Start starts a container of an image that is there. args replace the image's command
// when given.
func (p *Pod) Start(ctx context.Context, name, image string, args ...string) (*Container, error) {
	config := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: spec(image), Command: args, LogPath: name + ".log",
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: p.config.GetLinux().GetSecurityContext().GetNamespaceOptions(),
		}},
	}
	r, err := p.c.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, Config: config, SandboxConfig: p.config})
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", name, err)
	}
	c := &Container{ID: r.GetContainerId(), Log: path.Join(p.Logs, config.GetLogPath()), c: p.c, name: name}
	if _, err := p.c.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.ID}); err != nil {
		return nil, errors.Join(fmt.Errorf("starting container %s: %w", name, err), c.Remove(context.WithoutCancel(ctx)))
	}
	return c, nil
}

// Status is how the container is.
func (c *Container) Status(ctx context.Context) (*runtimeapi.ContainerStatus, error) {
	r, err := c.c.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.ID})
	return r.GetStatus(), err
}

// PID is the id of the container's first process, as the runtime sees it.
func (c *Container) PID(ctx context.Context) (int, error) {
	r, err := c.c.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.ID, Verbose: true})
	if err != nil {
		return 0, err
	}
	var info struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(r.GetInfo()["info"]), &info); err != nil {
		return 0, fmt.Errorf("container %s: %w", c.name, err)
	}
	if info.PID == 0 {
		return 0, fmt.Errorf("container %s does not run", c.name)
	}
	return info.PID, nil
}

// Exec runs a command in the container and returns what it wrote to its standard
// output.
func (c *Container) Exec(ctx context.Context, args ...string) (string, error) {
	r, err := c.c.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: args, Timeout: 60})
	if err == nil && r.GetExitCode() != 0 {
		err = fmt.Errorf("exit status %d: %s", r.GetExitCode(), strings.TrimSpace(string(r.GetStderr())))
	}
	if err != nil {
		err = fmt.Errorf("%s in container %s: %w", strings.Join(args, " "), c.name, err)
	}
	return string(r.GetStdout()), err
}

// Stats are the container's figures.
func (c *Container) Stats(ctx context.Context) (*runtimeapi.ContainerStats, error) {
	r, err := c.c.Runtime.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: c.ID})
	return r.GetStats(), err
}

// Remove ends the container at once and removes it.
func (c *Container) Remove(ctx context.Context) error {
	if _, err := c.c.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c.ID}); err != nil {
		return fmt.Errorf("stopping container %s: %w", c.name, err)
	}
	if _, err := c.c.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c.ID}); err != nil {
		return fmt.Errorf("removing container %s: %w", c.name, err)
	}
	return nil
}
