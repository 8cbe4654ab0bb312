package config

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/levee-xdp/levee/agent/notify"
	"github.com/levee-xdp/levee/agent/state"
)
