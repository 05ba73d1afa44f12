// Calls plugins by libcni, the library of every runtime, without a runtime around it. Built in
// GOPATH mode, so it takes whatever libcni the distribution packages.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/containernetworking/cni/libcni"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == "load" {
		if err := load(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "libcni:", err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) != 6 {
		fmt.Fprintln(os.Stderr, "usage: libcni add|check|del DIR NETWORK ID NETNS; libcni load DIR")
		os.Exit(2)
	}
	if err := call(os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5]); err != nil {
		fmt.Fprintln(os.Stderr, "libcni:", err)
		os.Exit(1)
	}
}

// Loads every file of a directory as containerd and CRI-O do, and prints the types of its plugins.
func load(dir string) error {
	files, err := libcni.ConfFiles(dir, []string{".conf", ".conflist", ".json"})
	if err != nil {
		return err
	}
	sort.Strings(files)
	for _, file := range files {
		var list *libcni.NetworkConfigList
		if strings.HasSuffix(file, ".conflist") {
			list, err = libcni.ConfListFromFile(file)
		} else {
			var conf *libcni.NetworkConfig
			if conf, err = libcni.ConfFromFile(file); err == nil {
				list, err = libcni.ConfListFromConf(conf)
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		fmt.Print(filepath.Base(file), " ", list.Name, ":")
		for _, plugin := range list.Plugins {
			fmt.Print(" ", plugin.Network.Type)
		}
		fmt.Println()
	}
	return nil
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
