"""`xenbusd`: the processes. `xenbusctl` (xenbusd.cli.ctl) talks to them."""

from xenbusd.cli.run import main

if __name__ == "__main__":
    main()
