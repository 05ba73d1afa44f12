// Calls plugins by libcni, the library of every runtime, without a runtime around it. Built in
// GOPATH mode, so it takes whatever libcni the distribution packages.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/containernetworking/cni/libcni"
)

func main() {
	if len(os.Args) != 6 {
		fmt.Fprintln(os.Stderr, "usage: libcni add|check|del DIR NETWORK ID NETNS")
		os.Exit(2)
	}
	if err := call(os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5]); err != nil {
		fmt.Fprintln(os.Stderr, "libcni:", err)
		os.Exit(1)
	}
}

func call(verb, dir, network, id, netns string) error {
	list, err := libcni.LoadConfList(dir, network)
	if err != nil {
		return err
	}
	cni := libcni.NewCNIConfig([]string{"/opt/cni/bin"}, nil)
	pod := &libcni.RuntimeConf{ContainerID: id, NetNS: netns, IfName: "eth0"}
	ctx := context.Background()
	switch verb {
	case "add":
		if _, err := cni.ValidateNetworkList(ctx, list); err != nil {
			return err
		}
		_, err = cni.AddNetworkList(ctx, list, pod)
	case "check":
		err = cni.CheckNetworkList(ctx, list, pod)
	case "del":
		err = cni.DelNetworkList(ctx, list, pod)
	default:
		err = fmt.Errorf("unknown verb %s", verb)
	}
	return err
}
