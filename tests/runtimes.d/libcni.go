// Calls plugins through libcni, the library of every runtime, without a runtime. Built in GOPATH mode, with the
// libcni that the distribution packages.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
)

const plugins = "/opt/cni/bin"

func main() {
	if len(os.Args) == 3 && os.Args[1] == "load" {
		if err := load(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "libcni:", err)
			os.Exit(1)
		}
		return
	}
	var err error
	switch args := os.Args[1:]; {
	case len(args) >= 3 && args[0] == "gc":
		err = gc(args[1], args[2], args[3:])
	case len(args) == 5:
		err = call(args[0], args[1], args[2], runtime(args[3], args[4]), "")
	case len(args) == 6:
		err = call(args[0], args[1], args[2], multus(args[3], args[4], args[5]), multusCache)
	default:
		fmt.Fprintln(os.Stderr, "usage: libcni add|check|del DIR NETWORK ID NETNS [IFNAME]")
		fmt.Fprintln(os.Stderr, "       libcni gc DIR NETWORK [ID/IFNAME...]; libcni load DIR")
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "libcni:", err)
		os.Exit(1)
	}
}

// The folder where Multus keeps the results of its delegates.
const multusCache = "/var/lib/cni/multus"

// The arguments of a runtime for a pod's network.
func runtime(id, netns string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: id, NetNS: netns, IfName: "eth0"}
}

// The arguments of Multus for a delegate's interface.
func multus(id, netns, ifname string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: id, NetNS: netns, IfName: ifname, Args: [][2]string{
		{"IgnoreUnknown", "true"},
		{"K8S_POD_NAMESPACE", "default"},
		{"K8S_POD_NAME", id},
		{"K8S_POD_INFRA_CONTAINER_ID", id},
		{"K8S_POD_UID", "uid-of-" + id},
	}}
}

// Loads every file of a directory like containerd and CRI-O, and prints the types of its plugins.
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

func call(verb, dir, network string, pod *libcni.RuntimeConf, cache string) error {
	list, err := libcni.LoadConfList(dir, network)
	if err != nil {
		return err
	}
	cni := libcni.NewCNIConfigWithCacheDir([]string{plugins}, cache, nil)
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

// Sends GC for a network with these valid attachments, like a libcni of CNI 1.1.0. Older versions of libcni
// have no GC, and older plugins other than symroute do not know it.
func gc(dir, network string, attachments []string) error {
	list, err := libcni.LoadConfList(dir, network)
	if err != nil {
		return err
	}
	valid := []map[string]string{}
	for _, attachment := range attachments {
		id, ifname, _ := strings.Cut(attachment, "/")
		valid = append(valid, map[string]string{"containerID": id, "ifname": ifname})
	}
	args := &invoke.Args{Command: "GC", Path: plugins}
	for _, plugin := range list.Plugins {
		if plugin.Network.Type != "symroute" {
			continue
		}
		conf, err := libcni.InjectConf(plugin, map[string]interface{}{
			"name": network, "cniVersion": "1.1.0", "cni.dev/valid-attachments": valid,
		})
		if err != nil {
			return err
		}
		path := filepath.Join(plugins, plugin.Network.Type)
		if err := invoke.ExecPluginWithoutResult(context.Background(), path, conf.Bytes, args, nil); err != nil {
			return err
		}
	}
	return nil
}
