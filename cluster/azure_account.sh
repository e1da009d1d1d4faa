#!/usr/bin/env bash
# What azure.yaml needs of a subscription:
#     bash cluster/azure_account.sh
# The resource group, the network that Ray then finds by its name, with a security group that admits ssh from
# this machine's address only, and the nodes' identity.
set -euo pipefail
address=$(curl -fsS https://checkip.amazonaws.com)

az group create --name carl-ray --location westus2
az network nsg create --resource-group carl-ray --name carl-ray
az network nsg rule create --resource-group carl-ray --nsg-name carl-ray --name ssh --priority 1000 \
    --source-address-prefixes "$address/32" --destination-port-ranges 22 --protocol Tcp --access Allow
az network vnet create --resource-group carl-ray --name ray-carl-nodes-vnet --address-prefixes 10.42.0.0/16 \
    --subnet-name ray-carl-nodes-subnet --subnet-prefixes 10.42.0.0/16 --network-security-group carl-ray
az identity create --resource-group carl-ray --name carl-ray
