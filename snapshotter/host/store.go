package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// kubernetes is the namespace of the images and containers of kubelet, in every
// version of containerd.
const kubernetes = "k8s.io"

// Store is what a running containerd remembers: images, their content, snapshots,
// containers, leases. All of it is reached by the interface that containerd 1.4 has,
// too.
type Store struct {
	socket string
	conn   *grpc.ClientConn
}

// OpenStore returns the store of the containerd that listens on socket, which is not
// asked yet. The caller closes it.
func OpenStore(socket string) (*Store, error) {
	// containerd itself sends up to 16 MiB, more than what clients take by default:
	// a node has many containers.
	const most = 64 << 20
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(most)))
	if err != nil {
		return nil, fmt.Errorf("containerd at %s: %w", socket, err)
	}
	return &Store{socket, conn}, nil
}

// Close ends the connection.
func (s *Store) Close() error { return s.conn.Close() }

// User is a container with a snapshot.
type User struct {
	Namespace, ID string
	// Image is the name of the container's image; some have none.
	Image string
}

// String names the user for people.
func (u User) String() string { return u.Namespace + "/" + u.ID }

// Loaded says whether containerd knows a snapshotter, be it built in or a proxy
// plugin. Whether a proxy plugin's program answers is not asked.
func (s *Store) Loaded(ctx context.Context, snapshotter string) (bool, error) {
	all, err := s.snapshotters(ctx)
	return slices.Contains(all, snapshotter), err
}

// snapshotters are the names of those that can be used.
func (s *Store) snapshotters(ctx context.Context) (names []string, err error) {
	r, err := introspectionapi.NewIntrospectionClient(s.conn).Plugins(ctx, &introspectionapi.PluginsRequest{
		Filters: []string{"type==io.containerd.snapshotter.v1"},
	})
	if err != nil {
		return nil, s.failed("listing plugins", err)
	}
	for _, p := range r.GetPlugins() {
		if p.GetInitErr() == nil { // those for file systems that the machine lacks have one
			names = append(names, p.GetID())
		}
	}
	return names, nil
}

// mustLoad is an error for a snapshotter that containerd does not know: then nothing
// can be said about it.
func (s *Store) mustLoad(ctx context.Context, snapshotter string) error {
	ok, err := s.Loaded(ctx, snapshotter)
	if err == nil && !ok {
		err = fmt.Errorf("containerd at %s does not know the snapshotter %s: restart it with a configuration that names it", s.socket, snapshotter)
	}
	return err
}

// Users are the containers of all namespaces whose snapshots are the snapshotter's,
// running or not. Those of kubelet include a container for each pod.
func (s *Store) Users(ctx context.Context, snapshotter string) ([]User, error) {
	var users []User
	err := s.each(ctx, func(ctx context.Context, ns string) error {
		stream, err := containersapi.NewContainersClient(s.conn).ListStream(ctx, &containersapi.ListContainersRequest{})
		if err != nil {
			return s.failed("listing containers", err)
		}
		return all(stream.Recv, func(m *containersapi.ListContainerMessage) {
			if c := m.GetContainer(); c.GetSnapshotter() == snapshotter {
				users = append(users, User{Namespace: ns, ID: c.GetID(), Image: c.GetImage()})
			}
		})
	})
	return users, err
}

// each calls f for each namespace, with a context whose calls are about that.
func (s *Store) each(ctx context.Context, f func(ctx context.Context, ns string) error) error {
	r, err := namespacesapi.NewNamespacesClient(s.conn).List(ctx, &namespacesapi.ListNamespacesRequest{})
	if err != nil {
		return s.failed("listing namespaces", err)
	}
	for _, n := range r.GetNamespaces() {
		if err := f(within(ctx, n.GetName()), n.GetName()); err != nil {
			return fmt.Errorf("namespace %s: %w", n.GetName(), err)
		}
	}
	return nil
}

// within returns a context for calls about a namespace.
func within(ctx context.Context, ns string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "containerd-namespace", ns)
}

// failed says which containerd did not do what.
func (s *Store) failed(what string, err error) error {
	return fmt.Errorf("%s of containerd at %s: %w", what, s.socket, err)
}

// all gives the messages of a stream to f until it ends.
func all[M any](recv func() (M, error), f func(M)) error {
	for {
		m, err := recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		f(m)
	}
}
