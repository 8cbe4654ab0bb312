package loader

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Of linux/ethtool.h.
const (
	ethtoolGetDriver   = 0x03
	ethtoolGetFlags    = 0x25
	ethtoolGetChannels = 0x3C
	ethtoolFlagLRO     = 1 << 15
)

// largeReceiveOffload asks the driver whether LRO is on (ETHTOOL_GFLAGS).
func largeReceiveOffload(name string) (bool, error) {
	value := struct{ cmd, data uint32 }{cmd: ethtoolGetFlags}
	if err := ethtool(name, unsafe.Pointer(&value)); err != nil {
		return false, fmt.Errorf("ask %s for its flags: %w", name, err)
	}
	return value.data&ethtoolFlagLRO != 0, nil
}

// channels is struct ethtool_channels: how many queues an interface can have and has, by what they do.
type channels struct {
	cmd                                    uint32
	maxRX, maxTX, maxOther, maxCombined    uint32
	rxCount, txCount, otherCount, combined uint32
}

// receive is how many queues packets come in by, and how many there could be.
func (c channels) receive() (have, most int) {
	return int(c.rxCount + c.combined), int(max(c.maxRX, c.maxCombined))
}

// queues asks the driver for its queues (ETHTOOL_GCHANNELS).
func queues(name string) (channels, error) {
	c := channels{cmd: ethtoolGetChannels}
	if err := ethtool(name, unsafe.Pointer(&c)); err != nil {
		return c, fmt.Errorf("ask %s for its queues: %w", name, err)
	}
	return c, nil
}

// driver asks for the driver's name (ETHTOOL_GDRVINFO).
func driver(name string) (string, error) {
	info := struct {
		cmd    uint32
		driver [32]byte
		_      [160]byte // the rest of struct ethtool_drvinfo
	}{cmd: ethtoolGetDriver}
	if err := ethtool(name, unsafe.Pointer(&info)); err != nil {
		return "", fmt.Errorf("ask %s for its driver: %w", name, err)
	}
	return unix.ByteSliceToString(info.driver[:]), nil
}

// ethtool makes a request of an interface's driver; what to points begins with its command and gets the
// answer.
func ethtool(name string, to unsafe.Pointer) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte // the rest of struct ifreq's union
	}{data: to}
	copy(request.name[:unix.IFNAMSIZ-1], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	if errno != 0 {
		return errno
	}
	return nil
}
