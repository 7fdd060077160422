package host

import (
	"context"
	"fmt"
	"strings"

	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"
)

// ContainerdVersion asks the containerd that listens on socket for its version, as
// that gives it: "v2.4.2", "1.6.20~ds1".
func ContainerdVersion(ctx context.Context, socket string) (version string, err error) {
	c, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return "", fmt.Errorf("containerd at %s: %w", socket, err)
	}
	defer func() {
		if cerr := c.Close(); err == nil && cerr != nil {
			err = cerr
		}
	}()
	v, err := versionapi.NewVersionClient(c).Version(ctx, &emptypb.Empty{})
	if err != nil {
		return "", fmt.Errorf("containerd at %s does not answer: %w", socket, err)
	}
	return v.GetVersion(), nil
}

// older says whether a version is before major.minor.patch. What cannot be read,
// such as a commit, is not.
func older(version string, major, minor, patch int) bool {
	var have [3]int
	n, _ := fmt.Sscanf(strings.TrimPrefix(version, "v"), "%d.%d.%d", &have[0], &have[1], &have[2])
	if n < 3 {
		return false
	}
	for i, want := range [3]int{major, minor, patch} {
		if have[i] != want {
			return have[i] < want
		}
	}
	return false
}
